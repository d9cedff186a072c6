{{- define "migration.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* What every pod of ours is: nobody in particular, and may write nowhere but in /tmp. */}}
{{- define "migration.pod" -}}
automountServiceAccountToken: false
{{- with .Values.pod.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .Values.pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- range $name := list "imagePullSecrets" "nodeSelector" "tolerations" "affinity" }}
{{- with index $.Values.pod $name }}
{{ $name }}: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
volumes:
  - name: secret
    secret:
      secretName: {{ .Values.secret.name }}
      defaultMode: 0444
      items:
        - {key: {{ .Values.secret.databaseUrl }}, path: database-url}
        - {key: {{ .Values.secret.redisUrl }}, path: redis-url}
  - name: tmp
    emptyDir: {sizeLimit: 1Gi}
  {{- with .Values.pod.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "migration.container" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
env:
  - {name: DATABASE_URL_FILE, value: /run/secrets/migration/database-url}
  - {name: REDIS_URL_FILE, value: /run/secrets/migration/redis-url}
  - {name: MIGRATION_HOME, value: /tmp/migration}
  {{- range $name, $value := .Values.settings }}
  - {name: {{ $name }}, value: {{ $value | quote }}}
  {{- end }}
  {{- with .Values.pod.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumeMounts:
  - {name: secret, mountPath: /run/secrets/migration, readOnly: true}
  - {name: tmp, mountPath: /tmp}
  {{- with .Values.pod.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
resources: {{- toYaml .Values.resources | nindent 2 }}
{{- end }}
