"""The bytes on disk: a set's layout, tars with a place for each member, JPEGs of which a part can be decoded."""
