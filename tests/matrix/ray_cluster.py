"""A Ray cluster on the loopback of this machine: two nodes of one CPU each, until stdin is closed.

    python tests/matrix/ray_cluster.py FOLDER

It says its address on stdout. Who connects to it needs the environment of `ENVIRONMENT`.
"""

import os
import sys

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "a" * 64,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # which has Ray take the loopback for its address here, as it does there
}


def main(folder: str) -> None:
    os.environ.update({**ENVIRONMENT, "RAY_TMPDIR": folder})
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
