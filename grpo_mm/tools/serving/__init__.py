"""Commands whose processes others ask or wait for: rewards and engines as servers, and the launch of a run with both beside it.

How a request is read or a process is placed is a matter of `rewards.service`, `pipelines.vlm.engine_server` and `launch`.
"""
