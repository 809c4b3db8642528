{{/*
What the operator may do where its resources live. No secrets, no pods/exec, no writes to the spec
of its own kinds.
*/}}
{{- define "octavo.workloadRules" -}}
- apiGroups: [serving.octavo.dev]
  resources: [inferenceservices, loraadapters]
  verbs: [get, list, watch]
- apiGroups: [serving.octavo.dev]
  resources: [inferenceservices/status, loraadapters/status]
  verbs: [patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
