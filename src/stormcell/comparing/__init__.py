"""An honest comparison of nets: the same data, the same split, several seeds, and what the difference is worth."""
