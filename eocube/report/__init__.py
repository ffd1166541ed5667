"""Say what a cube is and how good it is: info, fidelity, the HTML page."""
