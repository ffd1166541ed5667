"""Ask hosts again when requests fail, keep objects on any store, hide secrets."""
