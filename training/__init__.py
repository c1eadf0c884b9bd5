"""Training, scoring and prediction: everything around the model that is not pushed to the Hub."""
