"""What a tensor is: types, names and shapes, rows on demand, invertible operations, encoding."""
