"""Training: objectives, the trainer, run folders.

Import the module you need; this package imports nothing by itself.
"""
