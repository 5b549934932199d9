"""Files that outlive a process: safetensors, run folders with checkpoints, durable writes.

Import the module you need (``from microgpt.io import checkpoint``); this package imports nothing by itself.
"""
