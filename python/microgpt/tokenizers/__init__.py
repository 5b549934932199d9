"""Text to token ids and back: :mod:`.base` (the interface, loading), :mod:`.char`, :mod:`.hub`,
:mod:`.bpe` (training, choice), :mod:`.stream`.

Import the module you need; this package imports nothing by itself.
"""
