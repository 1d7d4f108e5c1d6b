"""One run on disk: what is checked before it, its manifest, log and result, and the processes that do it."""
