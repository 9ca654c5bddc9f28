"""The store of a study: results under the hash of what they depend on, and the index of what is stored."""
