{{- define "labels" -}}
{ app.kubernetes.io/name: groupcast, app.kubernetes.io/instance: {{ .Release.Name }} }
{{- end -}}
