"""What `grpo-mm new` writes: for each kind of data a commented config, a module of rewards and rows drawn by the worlds; the texts
are files here.

No training and no readers: what a starter folder holds is read and run by the same commands as any other.
"""
