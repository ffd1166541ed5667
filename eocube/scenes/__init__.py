"""Find scenes through STAC and freeze them: items, offsets settled, what a catalogue may lead to."""
