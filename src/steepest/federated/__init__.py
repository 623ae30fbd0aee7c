"""Learning over many parties: unequal speeds, black boxes, privacy, no server.

A federated method is a `ServerRule`; `SimulatedEngine` runs it in simulated time, `RayEngine` on real processes.
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "_session": ["FederatedResult"],
        "_dadao": ["dadao"],
        "_dadao_flow": ["DadaoConstants"],
        "_diff2": ["diff2", "dp_gd"],
        "_privacy": ["noise_multipliers"],
        "_fedzo": ["FedZO", "FedZOClient"],
        "_fourier_basis": ["FourierBasis"],
        "_gossip_rates": ["gossip_constants", "optimal_gossip_rates", "uniform_gossip_rates"],
        "_partition": ["dirichlet_partition", "iid_partition", "shard_partition"],
        "_speeds": ["FailureModel", "Speeds", "linear_speeds"],
        "_torch_client": ["TorchClient", "make_clients"],
        "_weights": ["WeightReport", "expected_weights", "schedule", "weight_report"],
        "_trajectory_surrogate": ["TrajectorySurrogate"],
        "fzoos": ["FZooS", "FZooSClient"],
        "engine": [
            "Aggregated",
            "Client",
            "ClientError",
            "ClientInfo",
            "Failure",
            "FunctionClient",
            "Reply",
            "Send",
            "ServerRule",
            "Stop",
            "Task",
            "Timer",
            "Update",
        ],
        "ray_engine": ["RayEngine"],
        "server": ["AsyncFedAvg", "FedAvg", "FedBuff", "FedFix"],
        "simulation": ["SimulatedEngine", "replay"],
    },
)
