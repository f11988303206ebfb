"""What is fitted: networks, linear classifiers, tabular agents."""
