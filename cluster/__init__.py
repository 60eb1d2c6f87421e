"""How the jobs run on clusters: a local one of several nodes, KubeRay manifests, a cluster launcher file, the image."""
