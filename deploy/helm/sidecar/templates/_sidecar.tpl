{{/*
What other charts may include. The context is that of this chart, or for another one:

  {{- $sidecar := dict "Values" .Values.sidecar "Release" .Release "Chart" .Subcharts.sidecar.Chart }}
  initContainers:
    {{- include "sidecar.container" $sidecar | nindent 4 }}
  volumes:
    {{- include "sidecar.volumes" $sidecar | nindent 4 }}
*/}}

{{- define "sidecar.name" -}}
{{ printf "%s-sidecar" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "sidecar.labels" -}}
app.kubernetes.io/name: sidecar
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "sidecar.selector" -}}
app.kubernetes.io/name: sidecar
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sidecar.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{/* What the container is, whether it stands alone or beside a producer. */}}
{{- define "sidecar.common" -}}
name: sidecar
image: {{ include "sidecar.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: ["run"]
envFrom:
  - configMapRef:
      name: {{ include "sidecar.name" . }}
ports:
  - name: sidecar-http
    containerPort: 9180
    protocol: TCP
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
  capabilities:
    drop: ["ALL"]
livenessProbe:
  # Never /readyz: an Elasticsearch that is away is mended by no restart.
  httpGet: { path: /livez, port: sidecar-http }
  periodSeconds: 10
  failureThreshold: 3
volumeMounts:
  - name: sidecar-secrets
    mountPath: /etc/sidecar/secrets
    readOnly: true
{{- end }}

{{/*
A native sidecar, for the initContainers of a pod: it starts before the pod's own containers and ends after them. No
readinessProbe: that of a native sidecar counts for the pod. The pod needs `enableServiceLinks: false`, and a
terminationGracePeriodSeconds that has room for its own end and the drain.
*/}}
{{- define "sidecar.container" -}}
- {{- include "sidecar.common" . | nindent 2 }}
  restartPolicy: Always
  startupProbe:
    httpGet: { path: /livez, port: sidecar-http }
    periodSeconds: 1
    failureThreshold: 60
{{- end }}

{{- define "sidecar.volumes" -}}
- name: sidecar-secrets
  secret:
    secretName: {{ .Values.secret.name }}
    # Whoever runs as another user than 10001 needs no fsGroup for it.
    defaultMode: 0444
{{- end }}
