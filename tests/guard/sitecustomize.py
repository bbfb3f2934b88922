"""Python imports this at the start of every child process of the tests, whose PYTHONPATH begins with this folder."""

import no_network

no_network.install()
