# Runs once, in audit mode: what the image needs of a cloud, and then sysprep, which powers the machine off.
# What goes wrong is said on the serial port, where the installation is watched from.
$ErrorActionPreference = 'Stop'
$here = Split-Path -Parent $MyInvocation.MyCommand.Path
$mirror = ''
$proxy = ''

function Say([string] $text) {
    $port = New-Object System.IO.Ports.SerialPort 'COM1', 115200
    try { $port.Open(); $port.WriteLine("CLOUDIMG $text") } catch { } finally { $port.Dispose() }
}

# A file in the root, or below guest-agent, of any CD; empty where there is none.
function Find([string] $name) {
    foreach ($drive in 'D', 'E', 'F', 'G', 'H') {
        foreach ($folder in "${drive}:\", "${drive}:\guest-agent\") {
            if (Test-Path $folder) {
                $found = Get-ChildItem -Path $folder -Filter $name -File -ErrorAction SilentlyContinue | Select-Object -First 1
                if ($found) { return $found.FullName }
            }
        }
    }
    return ''
}

function Install([string] $msi) {
    Say "installs $msi"
    $words = '/i', "`"$msi`"", '/qn', '/norestart'
    $done = Start-Process -FilePath msiexec.exe -ArgumentList $words -Wait -PassThru
    # 3010: it has succeeded, and wants a restart, which comes anyway
    if ($done.ExitCode -notin 0, 3010) { throw "msiexec ended with $($done.ExitCode) for $msi" }
}

try {
    $drivers = Find 'virtio-win-gt-x64.msi'
    if (-not $drivers) { throw 'virtio-win-gt-x64.msi is on no CD: image_medium.drivers is not the ISO of virtio-win' }
    Install $drivers
    $agent = Find 'qemu-ga-x86_64.msi'
    if (-not $agent) { throw 'qemu-ga-x86_64.msi is on no CD' }
    Install $agent

    $cloud = Find 'CloudbaseInitSetup*x64.msi'
    if (-not $cloud -and $mirror) {
        [Net.ServicePointManager]::SecurityProtocol = [Net.SecurityProtocolType]::Tls12
        $cloud = Join-Path $env:TEMP 'CloudbaseInitSetup_Stable_x64.msi'
        $options = @{ Uri = "$($mirror.TrimEnd('/'))/CloudbaseInitSetup_Stable_x64.msi"; OutFile = $cloud; UseBasicParsing = $true }
        if ($proxy) { $options['Proxy'] = $proxy }
        Invoke-WebRequest @options
    }
    if (-not $cloud) { throw 'there is no CloudbaseInitSetup*x64.msi on a CD, and image_medium.mirror is not set' }
    $signature = Get-AuthenticodeSignature -FilePath $cloud
    if ($signature.Status -ne 'Valid' -or $signature.SignerCertificate.Subject -notmatch 'Cloudbase Solutions') {
        throw "the signature of $cloud is $($signature.Status), of $($signature.SignerCertificate.Subject)"
    }
    Install $cloud

    # A blank password is good at the console only; this is Windows' default, and what keeps the image closed until it has one.
    Set-ItemProperty -Path 'HKLM:\SYSTEM\CurrentControlSet\Control\Lsa' -Name LimitBlankPasswordUse -Value 1 -Type DWord
    # The Special Administration Console on the serial port, from the next boot on.
    bcdedit.exe /emssettings EMSPORT:1 EMSBAUDRATE:115200 | Out-Null
    bcdedit.exe /ems '{current}' on | Out-Null
    if ($LASTEXITCODE -ne 0) { throw "bcdedit ended with $LASTEXITCODE" }

    $answers = "$env:SystemRoot\System32\Sysprep\cloudimg.xml"
    Copy-Item -Path "$here\sysprep.xml" -Destination $answers
    # What Setup was told is not for the machines that are made of the image.
    Remove-Item -Force -ErrorAction SilentlyContinue -Path "$env:SystemRoot\Panther\unattend.xml", "$env:SystemRoot\Panther\unattend-original.xml"
    Say 'runs sysprep'
    # Audit mode shows sysprep's own window, and two of it do not run at once.
    Get-Process -Name sysprep -ErrorAction SilentlyContinue | Stop-Process -Force
    $words = '/generalize', '/oobe', '/shutdown', '/quiet', "/unattend:$answers"
    $done = Start-Process -FilePath "$env:SystemRoot\System32\Sysprep\sysprep.exe" -ArgumentList $words -Wait -PassThru
    if ($done.ExitCode -ne 0) { throw "sysprep ended with $($done.ExitCode)" }
}
catch {
    Say "failed: $($_.Exception.Message -replace '\s+', ' ')"
    exit 1
}
