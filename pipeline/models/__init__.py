"""Save, load and export heads; predict with them."""
