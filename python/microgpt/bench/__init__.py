"""`microgpt bench`: figures of this machine, other libraries and the machine's limits beside them, in one run.

overview.py is the quick look. kernels.py, train.py and model.py drive child processes (paired.py), one library in each
because thread pools disturb each other: ours_*.py on our side, peers/ and llama.py on theirs. roofline.py measures the
limits.
"""
