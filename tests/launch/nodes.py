"""Ray's cluster of several nodes on this machine, which can be lost."""

from __future__ import annotations

from typing import Any

QUICK = {
    "health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 500, "worker_niceness": 0,
}  # fmt: skip
"""A lost node is noticed within seconds."""


class Nodes:
    """A head that has no place for trainers, and others that have one each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        memory = {"object_store_memory": 80 << 20}
        head = {"num_cpus": 0, "resources": {"home": 4}, "include_dashboard": False, "_system_config": QUICK, **memory}
        self._memory, self.cluster = memory, Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        return self.cluster.address

    def have(self, number: int) -> None:
        """So many nodes for trainers."""
        while len(self.nodes) < number:
            self.nodes.append(self.cluster.add_node(num_cpus=1, resources={"seat": 1}, **self._memory))
        while len(self.nodes) > number:
            self.lose(self.nodes[-1].node_id)

    def lose(self, node: str) -> None:
        """As when a machine is gone; node: its name, or how that begins."""
        found = next(one for one in self.nodes if one.node_id.startswith(node))
        self.nodes.remove(found)
        self.cluster.remove_node(found, allow_graceful=False)
