"""Tasks a second of Flower's simulation, with clients that do no work.

Flower pins packages that others need newer, so it usually lives in an environment of its own: this file imports nothing
but it and NumPy, and is run by that environment's interpreter::

    python -m venv flower && flower/bin/pip install "flwr[simulation]"
    steepest run fedfix --scale full --option flower-python=flower/bin/python
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

import numpy as np

CLIENTS, PARAMETERS = 10, 650


def tasks_per_second(rounds: int) -> float:
    """Run rounds of FedAvg over ten clients that send 650 parameters back; the first one starts the workers."""
    app, serverapp, clientapp = (importlib.import_module(f"flwr.{name}") for name in ("app", "serverapp", "clientapp"))
    strategies, simulation = (importlib.import_module(f"flwr.{n}") for n in ("serverapp.strategy", "simulation"))
    client, server = clientapp.ClientApp(), serverapp.ServerApp()
    moments: list[float] = []

    @client.train()
    def train(message: Any, context: Any) -> Any:
        content = {"arrays": message.content["arrays"], "metrics": app.MetricRecord({"num-examples": 1})}
        return app.Message(content=app.RecordDict(content), reply_to=message)

    def note(server_round: int, arrays: Any) -> Any:
        moments.append(time.perf_counter())
        return app.MetricRecord({"round": server_round})

    @server.main()
    def main(grid: Any, context: Any) -> None:
        strategy = strategies.FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
        start = app.ArrayRecord([np.zeros(PARAMETERS, np.float32)])
        strategy.start(grid, start, num_rounds=rounds + 1, evaluate_fn=note)

    backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    simulation.run_simulation(server, client, CLIENTS, backend_config=backend)
    first, last = moments[-rounds - 1], moments[-1]
    return CLIENTS * rounds / (last - first)


if __name__ == "__main__":
    print(json.dumps({"tasks_per_second": tasks_per_second(int(sys.argv[1]))}))
