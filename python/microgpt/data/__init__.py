"""Text in, batches of token ids out: :mod:`.corpus`, :mod:`.split`, :mod:`.batches`.

Import the module you need; this package imports nothing by itself.
"""
