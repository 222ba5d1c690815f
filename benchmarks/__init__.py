"""Commands for sample sets (`sample`), speed (`speed`), docs/RESULTS.md (`results`), references.

`speed` compares several sides: the pipeline, its parts and the book's code. Each side runs in its
own process, so that its peak memory is known and no thread of another side disturbs it. The sides
take turns, round after round. The times include:

- book's loop: from the first batch to the features of the last one, without importing TensorFlow,
  building and tracing the model and listing the folder.
- engine alone: decoded pixels in memory -> features.
- decoding alone: files -> pixels, as extract reads them.
- extract: a whole run into a new cache file, minus a run with one image per class. So imports and
  opening the engine do not count; hashing, decoding, committing and publishing do.

The start-up time of a side is from the start of its process to the end of its first batch; that of
extract is the time of the command with one image per class.
"""
