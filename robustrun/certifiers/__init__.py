"""What may be claimed of a fitted model: attacks, certificates, statistical bounds, evaluations."""
