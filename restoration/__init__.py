"""What the four DGUNet tasks share: data, training, inference, scoring and files."""
