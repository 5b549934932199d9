"""Text in, batches of token ids out. From the source to the trainer: :mod:`.files` and :mod:`.records` (bytes to
documents), :mod:`.corpus` (sources), :mod:`.shards` (token stores), :mod:`.split`, :mod:`.windows`, :mod:`.batches`;
:mod:`.prepare` does all of it.

Import the module you need; this package imports nothing by itself.
"""
