"""`octavo-operator local`: the same plans and manifests, carried out by processes on this machine.

The cluster is the object store of `cluster/`; a Deployment controller, a pod runtime and a proxy
stand in for kube-controller-manager, kubelet and kube-proxy, as far as our manifests need them.
"""
