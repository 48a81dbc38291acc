"""Trained models: by name, from a folder, from the Hugging Face Hub; saved and uploaded."""
