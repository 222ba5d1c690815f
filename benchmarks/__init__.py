"""How fast the pipeline is on this machine, beside what a reader of the book would write.

Every side runs in a process of its own, so that its memory is its own and no thread of another is
in its way; one works at a time, all in turn, round after round. What counts:

- the book's loop: from the first batch to the last one's features. Importing TensorFlow, building
  the model, tracing it and listing the folder do not count.
- an engine alone: decoded pixels in memory -> features.
- decoding alone: files -> pixels, as extract reads them.
- extract: the whole call into a new cache file, less the same call with one image of each class.
  So importing and opening the engine do not count here either; hashing, decoding, committing and
  publishing do.

Start-up stands beside each: from the start of the process until its first batch is done; of
extract, the command with one image of each class until it has ended.
"""
