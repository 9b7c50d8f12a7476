{{- define "pgark.name" -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "pgark.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "pgark.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "pgark.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What all pods have: who they are, and what they see. */}}
{{- define "pgark.pod" -}}
serviceAccountName: {{ include "pgark.serviceAccount" . }}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 999
  runAsGroup: 999
  fsGroup: 999
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: config
    configMap:
      name: {{ include "pgark.name" . }}
  - name: passphrase
    secret:
      secretName: {{ required "passphrase.existingSecret names the secret with the passphrase" .Values.passphrase.existingSecret }}
      items:
        - key: {{ .Values.passphrase.key }}
          path: passphrase
  {{- with .Values.connection.existingSecret }}
  - name: connection
    secret:
      secretName: {{ . }}
  {{- end }}
  - name: private
    emptyDir:
      medium: Memory
      sizeLimit: 1Mi
  - name: scratch
    emptyDir:
      sizeLimit: {{ .Values.scratch.sizeLimit }}
  {{- with .Values.pgdata.existingClaim }}
  - name: pgdata
    persistentVolumeClaim:
      claimName: {{ . }}
      readOnly: true
  {{- end }}
  {{- with .Values.repository.existingClaim }}
  - name: repository
    persistentVolumeClaim:
      claimName: {{ . }}
  {{- end }}
{{- end -}}

{{/* Secrets that Kubernetes mounts are readable by a group; pgark and libpq want files that their owner alone reads. */}}
{{- define "pgark.initContainer" -}}
name: secrets
image: "{{ .Values.image.repository }}:{{ .Values.image.tag }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: ["/bin/sh", "-ec"]
args:
  - |
    umask 077
    mkdir -p /private/pgark /private/connection
    cp /mounted/passphrase/passphrase /private/pgark/
    {{- if .Values.connection.existingSecret }}
    cp /mounted/connection/* /private/connection/
    {{- end }}
volumeMounts:
  - name: passphrase
    mountPath: /mounted/passphrase
    readOnly: true
  {{- if .Values.connection.existingSecret }}
  - name: connection
    mountPath: /mounted/connection
    readOnly: true
  {{- end }}
  - name: private
    mountPath: /private
{{ include "pgark.confined" . }}
{{- end -}}

{{- define "pgark.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: ["ALL"]
resources: {{- toYaml .Values.resources | nindent 2 }}
{{- end -}}

{{- define "pgark.container" -}}
name: pgark
image: "{{ .Values.image.repository }}:{{ .Values.image.tag }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  - name: HOME
    value: /tmp
  - name: PGARK_CACHE_DIR
    value: /tmp/cache
  # Audit records and alerts that wait: with CronJobs they go with the pod.
  - name: PGARK_STATE_DIR
    value: {{ eq .Values.flavour "server" | ternary "/var/lib/pgark-server/local" "/tmp/local" }}
{{- with .Values.envFromSecrets }}
envFrom:
  {{- range . }}
  - secretRef:
      name: {{ . }}
  {{- end }}
{{- end }}
{{ include "pgark.confined" . }}
{{- end -}}

{{- define "pgark.mounts" -}}
- name: config
  mountPath: /etc/pgark
  readOnly: true
- name: private
  mountPath: /run/secrets/pgark
  subPath: pgark
  readOnly: true
- name: private
  mountPath: /run/secrets/connection
  subPath: connection
  readOnly: true
- name: scratch
  mountPath: /tmp
{{- if .Values.pgdata.existingClaim }}
- name: pgdata
  mountPath: {{ .Values.pgdata.mountPath }}
  readOnly: true
{{- end }}
{{- if .Values.repository.existingClaim }}
- name: repository
  mountPath: {{ .Values.repository.mountPath }}
{{- end }}
{{- end -}}

{{/* Asks the server itself. Without TLS it listens on the loopback of the pod, which the kubelet does not reach: the image's shell asks there. */}}
{{- define "pgark.probe" -}}
{{- $port := .root.Values.server.port | int -}}
{{- if .root.Values.server.tls -}}
httpGet:
  scheme: HTTPS
  path: {{ .path }}
  port: {{ $port }}
{{- else -}}
exec:
  command:
    - /bin/bash
    - -c
    - |
      exec 3<>/dev/tcp/127.0.0.1/{{ $port }} || exit 1
      printf 'GET {{ .path }} HTTP/1.1\r\nHost: 127.0.0.1:{{ $port }}\r\nConnection: close\r\n\r\n' >&3
      read -r _ status _ <&3 && [ "$status" = 200 ]
{{- end }}
{{- end -}}
