"""The processes of a run over the machines of a Ray cluster, or of this machine: trainers, services beside them, and what begins again.

Nothing here reads a config, samples or trains: commands are started with the environment that torchrun would give them.
"""
