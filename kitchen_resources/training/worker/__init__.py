"""The `trl` trainer in processes of its own: what they are told, what they tell, and who starts them."""
