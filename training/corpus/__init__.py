"""Documents: readers, reports, training windows and their batches."""
