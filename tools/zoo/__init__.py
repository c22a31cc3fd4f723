"""The networks of `models/`: their data, architectures, training, export and model card."""
