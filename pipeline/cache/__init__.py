"""The store of features: rows under a content key, in files that outlive any crash."""
