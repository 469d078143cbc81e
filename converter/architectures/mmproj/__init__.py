"""The second file of a multimodal model, one file of data for each family of towers; each has PROJECTORS."""
