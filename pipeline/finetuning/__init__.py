"""Train parts of a base together with a head: from the freeze boundary's cache, or end to end."""
