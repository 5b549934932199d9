"""Text to token ids and back: :mod:`.base` (the interface, loading), :mod:`.char`, :mod:`.hub`,
:mod:`.stream`.

Import the module you need; this package imports nothing by itself.
"""
