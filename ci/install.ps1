# Installs openhosting on Windows for the user who runs it; no administrator is needed:
#
#   irm https://github.com/OWNER/openhosting/releases/latest/download/install.ps1 | iex
#
# Saved as a file it takes parameters: a version, a directory, and the SHA-256 that the archive
# must have. What is verified is what install.sh verifies: the digest, and with gh the attestation
# of the build.
param(
    [string]$Version = '0.0.0',
    [string]$To = (Join-Path $env:LOCALAPPDATA 'Programs\openhosting'),
    [string]$Sha256 = '',
    [string]$From = 'https://github.com/OWNER/openhosting'
)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'

function Install-Openhosting {
    if ($Version -notmatch '^v?[0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z.-]*$' -or $Version -eq ('0.' + '0.0')) {
        throw "install.ps1: not a version: $Version"
    }
    if ($From -notmatch '^https://') { throw "install.ps1: not an https address: $From" }
    $number = $Version -replace '^v', ''
    $name = "openhosting-$number-x86_64-pc-windows-gnu"
    $release = "$From/releases/download/v$number"
    $work = Join-Path ([IO.Path]::GetTempPath()) ('openhosting-' + [Guid]::NewGuid())
    New-Item -ItemType Directory -Path $work | Out-Null
    try {
        $archive = Join-Path $work "$name.zip"
        Invoke-WebRequest -UseBasicParsing -Uri "$release/$name.zip" -OutFile $archive
        $wanted = $Sha256
        if (-not $wanted) {
            $sums = (Invoke-WebRequest -UseBasicParsing -Uri "$release/SHA256SUMS").Content
            if ($sums -is [byte[]]) { $sums = [Text.Encoding]::ASCII.GetString($sums) }
            foreach ($line in $sums -split "`n") {
                $digest, $file = $line.Trim() -split '\s+\*?', 2
                if ($file -eq "$name.zip") { $wanted = $digest }
            }
            if (-not $wanted) { throw "install.ps1: SHA256SUMS of release $number does not list $name.zip" }
        }
        if ((Get-FileHash -Algorithm SHA256 -Path $archive).Hash -ne $wanted) {
            throw "install.ps1: $name.zip does not have the SHA-256 that it must have: nothing was installed"
        }
        if ($Sha256) {
            # The digest that was given says more than an attestation.
        } elseif (Get-Command gh -ErrorAction SilentlyContinue) {
            $repository = $From -replace '^https://[^/]+/', ''
            gh attestation verify $archive --repo $repository --source-ref "refs/tags/v$number" `
                --signer-workflow "$repository/.github/workflows/release.yml" --deny-self-hosted-runners
            if ($LASTEXITCODE -ne 0) {
                throw "install.ps1: $name.zip has no attestation that release.yml of $repository built it at the tag v${number}: nothing was installed"
            }
        } else {
            Write-Warning 'gh is not installed, so the attestation of the build was not verified'
        }
        Expand-Archive -Path $archive -DestinationPath $work
        New-Item -ItemType Directory -Force -Path $To | Out-Null
        Copy-Item -Force -Path (Join-Path $work "$name\openhosting*.exe") -Destination $To
        Write-Output "openhosting $number is in $To"
        if (($env:PATH -split ';') -notcontains $To) {
            Write-Output "Add it to your PATH: [Environment]::SetEnvironmentVariable('Path', [Environment]::GetEnvironmentVariable('Path', 'User') + ';$To', 'User')"
        }
    } finally {
        Remove-Item -Recurse -Force -Path $work
    }
}

# At the end, so that a script that was cut off does nothing.
Install-Openhosting
