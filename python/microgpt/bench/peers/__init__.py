"""The child processes of other libraries, and what both sides share.

`PYTHON this-folder MODULE` starts one; nothing here imports microgpt, so that PYTHON may be any that has the peer.
"""
