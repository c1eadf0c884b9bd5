"""Write the model card of a Hub folder, and check the folder before it is uploaded."""
