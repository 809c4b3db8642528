{{/* Names and labels that all objects of the chart share. */}}

{{- define "octavo.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "octavo.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "octavo.name" .) .Release.Name -}}
{{- printf "%s-operator" (.Release.Name | trunc 54 | trimSuffix "-") -}}
{{- else -}}
{{- printf "%s-%s-operator" (.Release.Name | trunc 30 | trimSuffix "-") (include "octavo.name" . | trunc 23 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "octavo.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "octavo.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "octavo.selectorLabels" -}}
app.kubernetes.io/name: {{ include "octavo.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "octavo.labels" -}}
{{ include "octavo.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: octavo
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* An image reference; takes (list root image). A digest wins over a tag. */}}
{{- define "octavo.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := default $image.registry $root.Values.imageRegistry -}}
{{- $name := printf "%s/%s" $registry $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* A Job's name is a label of its pods, so it has 63 characters at most. */}}
{{- define "octavo.retireName" -}}
{{- printf "%s-retire" (include "octavo.fullname" . | trunc 56 | trimSuffix "-") -}}
{{- end -}}

{{/* Where the operator keeps the key to workers' admin ports; it makes the Secret itself. */}}
{{- define "octavo.adminKeySecret" -}}
{{- printf "%s-admin-key" (include "octavo.fullname" .) -}}
{{- end -}}

{{/* Who may reach workers from outside their namespace, as the operator's setting has it. */}}
{{- define "octavo.workerPeers" -}}
{{- if .Values.workerNetworkPolicy.enabled -}}
{{- $namespace := dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace) -}}
{{- $pods := dict "matchLabels" (include "octavo.selectorLabels" . | fromYaml) -}}
{{- $operator := dict "namespaceSelector" $namespace "podSelector" $pods -}}
{{- $api := concat (list $operator) .Values.workerNetworkPolicy.from -}}
{{- $admin := concat (list $operator) .Values.workerNetworkPolicy.metricsFrom -}}
{{- dict "api" $api "admin" $admin | toJson -}}
{{- else -}}
everybody
{{- end -}}
{{- end -}}

{{/* Labels of the pre-delete hook; not the operator's, or its NetworkPolicy would hold for it. */}}
{{- define "octavo.retireLabels" -}}
app.kubernetes.io/name: {{ include "octavo.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: retire
app.kubernetes.io/part-of: octavo
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* Annotations that make an object part of the pre-delete hook; takes its weight. */}}
{{- define "octavo.retireHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* The restricted Pod Security Standard, for all pods of the chart. */}}
{{- define "octavo.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "octavo.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Calls that are held come from everywhere; what is on these two ports is not meant for all. */}}
{{- define "octavo.checkPorts" -}}
{{- if eq (int .Values.metrics.port) (int .Values.probePort) }}
{{- fail (printf "metrics.port and probePort are both %d; choose another for one of them" (int .Values.probePort)) }}
{{- end }}
{{- $first := int .Values.activator.port }}
{{- $last := add $first 999 | int }}
{{- range $name, $port := dict "metrics.port" .Values.metrics.port "probePort" .Values.probePort }}
{{- if and $.Values.activator.enabled (ge (int $port) $first) (le (int $port) $last) }}
{{- fail (printf "%s is %d, among the ports %d to %d on which calls are held; choose another, or another activator.port" $name (int $port) $first $last) }}
{{- end }}
{{- end }}
{{- end }}
