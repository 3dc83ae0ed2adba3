"""A small backbone of the project's own, trained on procedural images alone."""
