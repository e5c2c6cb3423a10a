"""Messages on their way, without a network: admission, flow control, requests, responses, settlement."""
