"""Scorers in environments of their own: what a process there is told and answers, in the form of the service, and the files NAME.txt of
pinned packages that ship.

How an environment is made is a matter of `grpo_mm/environments`, how a process is started and ended of `rollout.isolated`.
"""
