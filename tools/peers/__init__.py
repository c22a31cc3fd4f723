"""The models on which the benches compare graphopt with its peers; `peer_models` is the entrance."""
