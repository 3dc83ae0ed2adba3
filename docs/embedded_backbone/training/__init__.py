"""What the embedded backbone was trained with; ``train.py`` next to it runs it."""
