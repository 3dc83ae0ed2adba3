"""A small backbone that comes with the package, trained only on generated images."""
