"""One small file a kind of file: each turns one file into a `(time, y, x)` DataArray, as raw as the file holds it."""
